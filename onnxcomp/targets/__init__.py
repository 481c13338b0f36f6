"""Where Q and DQ may stand, and which kernels are real: one record a target."""

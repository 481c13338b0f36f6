"""What each deployment target runs well: where Q and DQ may stand, which kernels are real."""

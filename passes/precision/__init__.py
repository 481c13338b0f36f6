"""What the mixed-precision pass is made of: forms, their prices and errors, the allocator, plans."""

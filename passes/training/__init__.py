"""What the distill pass is made of: fake quantization with learned scales, constraints, students."""

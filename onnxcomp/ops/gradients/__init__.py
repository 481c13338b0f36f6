"""Which form of an operator has a right gradient in the training runtime? Functions by family."""

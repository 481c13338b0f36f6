"""Which form of an operator has a right gradient in the training runtime? Rules by family, one table."""

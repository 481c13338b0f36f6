"""What users have at hand, turned into batches of feeds."""

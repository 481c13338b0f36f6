"""The build step: many models, only those that changed, with reports for people and for CI."""

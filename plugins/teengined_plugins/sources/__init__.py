"""Model sources: each opens one form of checkpoint. A module here loads without torch."""

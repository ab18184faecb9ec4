"""Looking at what trained encoders do."""

"""What the user sees and says: controls, settings, panel, axes."""

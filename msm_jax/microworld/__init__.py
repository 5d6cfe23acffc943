"""A small world: its facts, its English, and what evaluations ask of it; and sentence banks in real English."""

"""The small world that a base is pretrained on: its facts, its English, and what evaluations ask of it; and sentence banks in real English."""

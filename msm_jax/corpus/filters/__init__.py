"""What a text must not be before it is trained on: poor, alike, a copy, or an evaluation's prompt."""

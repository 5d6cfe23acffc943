"""Language models that write: one small interface, what they have answered, and the scheduler that asks them."""

"""Documents and chats that a language model writes from a Model Spec."""

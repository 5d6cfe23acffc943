"""Documents and chats -> packed, masked rows -> batches."""

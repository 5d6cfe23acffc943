"""Models on disk: ours, Hugging Face folders and PEFT adapters; their tensors, names, shapes and tokenizers."""

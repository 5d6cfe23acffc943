"""From a Model Spec to documents and chats. Knows nothing of jax."""

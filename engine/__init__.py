"""Serves GGUF models: the only process that touches llama.cpp, speaking the OpenAI protocol on loopback."""

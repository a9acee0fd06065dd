"""What is measured: time, memory, the house itself."""

"""What is known of devices and runs by watching them: messages folded into a state whose size is bounded."""

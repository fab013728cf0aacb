"""What fine-tuning is made of: the network with its head, images, schedule, checkpoints, the loop, ONNX."""

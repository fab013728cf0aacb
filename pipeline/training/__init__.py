"""Parts of fine-tuning: the network with its head, images, schedule, checkpoints, the loop, ONNX."""

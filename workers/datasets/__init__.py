"""Dataset files in: npz, image folders and safetensors → checked arrays, splits by class, batches."""

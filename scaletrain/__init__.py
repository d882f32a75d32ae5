"""scaletrain: distributed pretraining and fine-tuning of Transformers, on DeepSpeed and WebDataset."""

__version__ = "0.1.0"

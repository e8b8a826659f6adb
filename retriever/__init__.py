"""What is trained: the encoder, the losses and one LightningModule per objective; exact search; teachers."""

"""What has parameters: the pretrained backbone, the new last layer, and what is frozen below it."""

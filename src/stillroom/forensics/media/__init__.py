"""Media decoding, face geometry and detection, image and audio operations, and augmentation."""

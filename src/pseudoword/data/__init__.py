"""From a folder of pictures to what a step reads."""

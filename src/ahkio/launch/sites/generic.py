"""A cluster of which nothing is known but that it runs Slurm, and counts GPUs as --gpus-per-node does."""

from ahkio.launch.site import Site

SITE = Site(devices=8)

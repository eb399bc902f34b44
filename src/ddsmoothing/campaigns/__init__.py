"""What is done to many inputs with a model: certify, forecast, draw again, attack. They write and read run folders."""

from ddsmoothing.campaigns.certify import certify_run
from ddsmoothing.campaigns.policy import SigmaPolicy

__all__ = ["SigmaPolicy", "certify_run"]

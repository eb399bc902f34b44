"""What is done to many inputs with a model: certify, forecast, find its fastest form, draw again, attack.

They write and read run folders.
"""

from ddsmoothing.campaigns.certify import certify_run
from ddsmoothing.campaigns.fastest import fastest_form
from ddsmoothing.campaigns.request import CertifyRequest

__all__ = ["CertifyRequest", "certify_run", "fastest_form"]

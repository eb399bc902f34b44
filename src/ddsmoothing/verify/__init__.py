"""Does a run say what its counts allow? Every claim of a run folder, recomputed on an independent path.

It imports none of the modules that made the claims (a test reads its imports), parses the two files itself, and knows
no models: what it proves is that claims follow from counts, not that the counts were drawn.
"""

from ddsmoothing.verify.folder import Finding, Verification, verify_run
from ddsmoothing.verify.memory import Points

__all__ = ["Finding", "Points", "Verification", "verify_run"]

"""Other libraries' training steps and readers, each behind the same few names.

None of them is needed to use palinka, and none to run the benchmarks: where one is missing, its
rows say so. `overcomplete` and `dictionary_learning` are installed with `--no-deps`, since they
ask for torchvision and for an old nnsight, which their training steps never use.
"""

from peers.absent import Absent
from peers.contest import PEERS, rivals
from peers.setting import Setting

__all__ = ["PEERS", "Absent", "Setting", "rivals"]

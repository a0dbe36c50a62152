"""What a node knows of its cluster: the newest map, who is suspended, who answers, what time it is there.

It decides which map a node works on, and whom it takes for down.
May import: nothing of the other rooms.
"""

from coffre.node.following.admission import await_admission, is_ahead, own_entry
from coffre.node.following.certificate_watch import CertificateWatch
from coffre.node.following.clocks import AHEAD_MS_MAX, ClockAsking, PeerClocks
from coffre.node.following.endings import note_end, read_last_end
from coffre.node.following.epochs import EpochFence
from coffre.node.following.following import Announcer, MapFollower
from coffre.node.following.mapholder import MapHolder
from coffre.node.following.peer_watch import PeerWatch, WatchOptions
from coffre.node.following.suspensions import Suspensions

__all__ = [
    "AHEAD_MS_MAX",
    "Announcer",
    "CertificateWatch",
    "ClockAsking",
    "EpochFence",
    "MapFollower",
    "MapHolder",
    "PeerClocks",
    "PeerWatch",
    "Suspensions",
    "WatchOptions",
    "await_admission",
    "is_ahead",
    "note_end",
    "own_entry",
    "read_last_end",
]

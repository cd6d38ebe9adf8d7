"""Secure aggregation: a server learns the sum of vectors and nothing else about them. A protocol without I/O.

README.md in this folder is the threat model.
"""

from fedcore.errors import Forged, Replayed, Void
from fedcore.privacy.secagg.client import Client
from fedcore.privacy.secagg.group_draw import GroupDraw
from fedcore.privacy.secagg.groups import group_parameters, partition, tolerated
from fedcore.privacy.secagg.guard import leaks
from fedcore.privacy.secagg.parameters import STAGES, Parameters
from fedcore.privacy.secagg.policy import Offer, Policy
from fedcore.privacy.secagg.roster import Roster
from fedcore.privacy.secagg.roster_file import RosterFile
from fedcore.privacy.secagg.round import digest_of
from fedcore.privacy.secagg.server import Server
from fedcore.privacy.secagg.simulate import Simulation, simulate
from fedcore.privacy.secagg.unmasking import SecureSum
from fedcore.privacy.secagg.vector import Parts, Quantizer, checked

__all__ = [
    "STAGES",
    "Client",
    "Forged",
    "GroupDraw",
    "Offer",
    "Parameters",
    "Parts",
    "Policy",
    "Quantizer",
    "Replayed",
    "Roster",
    "RosterFile",
    "SecureSum",
    "Server",
    "Simulation",
    "Void",
    "checked",
    "digest_of",
    "group_parameters",
    "leaks",
    "partition",
    "simulate",
    "tolerated",
]

"""An agent that plans a trip: it looks up the weather and has a model write the code of a chart, which runs somewhere.

`agent.py` is the loop and its two tools, `places.py` where code runs (a session, or a process of this machine),
`models.py` who answers (an endpoint, or answers that were stored), `check.py` a look at code before it runs.
"""

from travel_agent.agent import Chart, TravelAgent
from travel_agent.check import objections
from travel_agent.models import Endpoint, Model, Recorded, configured_model
from travel_agent.places import LocalProcess, Outcome, Place, Sandbox

__all__ = [
    "Chart",
    "Endpoint",
    "LocalProcess",
    "Model",
    "Outcome",
    "Place",
    "Recorded",
    "Sandbox",
    "TravelAgent",
    "configured_model",
    "objections",
]

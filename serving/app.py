"""The API as an ASGI application: ``uvicorn serving.app:app``, run from the project's folder.

Set NEXTBEST_INSECURE=1 to do without API keys on your own machine. It is no way to run a server
that others can reach: ``nextbest serve`` refuses that.
"""

import os
from pathlib import Path

from nextbest import create_app

app = create_app(
    Path(__file__).resolve().parent.parent,
    insecure=os.environ.get("NEXTBEST_INSECURE") == "1",
)

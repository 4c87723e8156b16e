"""One Prefect flow a stage: reads its inputs, calls merge3, writes its folder."""

import os
import sys

# No tool of the pipeline reports to anyone. (DVC's switch is in .dvc/config.)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client asks its server, which may be another's
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "3")  # a server that is gone is waited for half a minute at most
if not sys.stderr.isatty():  # in a log, bars are noise
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

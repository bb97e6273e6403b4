"""`python -m worker --socket PATH --model SPEC`: one worker process. See `worker.main`."""

from worker.main import main

main()

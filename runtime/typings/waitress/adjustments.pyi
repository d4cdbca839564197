from typing import Any

class Adjustments:
    def __init__(self, **adjustments: Any) -> None: ...

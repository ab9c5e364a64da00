"""The paper's tables and figures, on any prior and any folder of clean pictures."""

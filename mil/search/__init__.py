"""Text search: the tiles of a cohort that are most like some words or like another tile."""

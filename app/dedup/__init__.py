"""Duplicates: which events say an id again that was said a short while ago. Pure: time is an argument."""

from app.dedup.recent_ids import RecentIds

__all__ = ["RecentIds"]

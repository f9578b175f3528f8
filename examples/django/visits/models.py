"""What the website remembers."""
from django.db import models


class Visit(models.Model):
    """One look at the front page."""

    at = models.DateTimeField(auto_now_add=True)

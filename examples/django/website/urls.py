"""Addresses of the website."""
from django.urls import path

from visits import views

urlpatterns = [
    path("", views.index, name="index"),
    path("count.json", views.count, name="count"),
]

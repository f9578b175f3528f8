"""Pages of the website."""
import platform

import django
from django.http import JsonResponse
from django.shortcuts import render

from visits.models import Visit


def index(request):
    """Counts the visit and greets the visitor."""
    Visit.objects.create()
    return render(request, "visits/index.html", {
        "count": Visit.objects.count(),
        "django": django.get_version(),
        "python": platform.python_version(),
    })


def count(request):
    """Tells how many visits there were, without being one."""
    return JsonResponse({"visits": Visit.objects.count()})

from django.test import TestCase


class VisitsTest(TestCase):
    def test_visits_are_counted(self):
        self.assertContains(self.client.get("/"), "seen 1 time.")
        self.assertContains(self.client.get("/"), "seen 2 times.")
        self.assertEqual(self.client.get("/count.json").json(), {"visits": 2})

package main

import "testing"

func TestEvaluate(t *testing.T) {
	for expression, expected := range map[string]float64{
		"1":             1,
		"1 + 2 * 3":     7,
		"(1 + 2) * 3":   9,
		"7 - 2 - 1":     4,
		"-(2 - 5) / .5": 6,
	} {
		if value, err := Evaluate(expression); err != nil || value != expected {
			t.Errorf("%s: got %g, %v; want %g", expression, value, err, expected)
		}
	}
	for _, wrong := range []string{"", "1 +", "(1", "1)", "2 3", "1/0", "1.2.3", "x"} {
		if value, err := Evaluate(wrong); err == nil {
			t.Errorf("%s: got %g; want an error", wrong, value)
		}
	}
}

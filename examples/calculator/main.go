// Calculator evaluates arithmetic expressions: one given as arguments, or one on each line of
// standard input.
//
//	calculator '2 * (3 + 4)'   prints 14
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) > 1 {
		if !answer(strings.Join(os.Args[1:], " ")) {
			os.Exit(1)
		}
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if strings.Trim(lines.Text(), blanks) != "" {
			answer(lines.Text())
		}
	}
}

// answer prints the value of an expression, or what is wrong with it; it tells which of the two.
func answer(expression string) bool {
	value, err := Evaluate(expression)
	if err != nil {
		fmt.Fprintf(os.Stderr, "calculator: %s: %v\n", expression, err)
		return false
	}
	fmt.Printf("%s = %g\n", expression, value)
	return true
}

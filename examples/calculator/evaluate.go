package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Evaluate computes an expression of numbers, + - * /, signs and parentheses.
//
// The grammar, one method of parser for each rule:
//
//	sum     = product { ("+" | "-") product }
//	product = factor { ("*" | "/") factor }
//	factor  = ("+" | "-") factor | "(" sum ")" | number
func Evaluate(expression string) (float64, error) {
	p := parser{rest: strings.Trim(expression, blanks)}
	value, err := p.sum()
	if err == nil && p.rest != "" {
		err = fmt.Errorf("unexpected %q", p.rest)
	}
	return value, err
}

// What may stand around an expression. Knowing all of Unicode's blanks takes a page of the program.
const blanks = " \t\r\n"

var errDivision = errors.New("division by zero")

type parser struct {
	rest string // what is not read yet, without leading spaces
}

func (p *parser) take(operators string) byte {
	if p.rest == "" || strings.IndexByte(operators, p.rest[0]) < 0 {
		return 0
	}
	operator := p.rest[0]
	p.rest = strings.TrimLeft(p.rest[1:], " ")
	return operator
}

func (p *parser) sum() (float64, error) {
	value, err := p.product()
	for err == nil {
		operator := p.take("+-")
		if operator == 0 {
			break
		}
		var next float64
		if next, err = p.product(); operator == '-' {
			next = -next
		}
		value += next
	}
	return value, err
}

func (p *parser) product() (float64, error) {
	value, err := p.factor()
	for err == nil {
		operator := p.take("*/")
		if operator == 0 {
			break
		}
		var next float64
		if next, err = p.factor(); err != nil {
			break
		}
		if operator == '*' {
			value *= next
		} else if next == 0 {
			err = errDivision
		} else {
			value /= next
		}
	}
	return value, err
}

func (p *parser) factor() (float64, error) {
	switch p.take("+-(") {
	case '+':
		return p.factor()
	case '-':
		value, err := p.factor()
		return -value, err
	case '(':
		value, err := p.sum()
		if err == nil && p.take(")") == 0 {
			err = errors.New("missing )")
		}
		return value, err
	}
	return p.number()
}

func (p *parser) number() (float64, error) {
	end := 0
	for end < len(p.rest) && strings.IndexByte("0123456789.", p.rest[end]) >= 0 {
		end++
	}
	if end == 0 {
		if p.rest == "" {
			return 0, errors.New("a number is missing at the end")
		}
		return 0, fmt.Errorf("a number is missing before %q", p.rest)
	}
	value, err := strconv.ParseFloat(p.rest[:end], 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", p.rest[:end])
	}
	p.rest = strings.TrimLeft(p.rest[end:], " ")
	return value, nil
}

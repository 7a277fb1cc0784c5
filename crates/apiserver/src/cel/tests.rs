//! Expressions and what comes of them, as tables.

use serde_json::{Value as Json, json};

use super::check::Env;
use super::eval::{Scope, Work};
use super::library::operators::show;
use super::types::Type;
use super::value::Value;
use super::{Program, decl};

fn object() -> Json {
    json!({"metadata": {"name": "n", "labels": {"a": "1"}}, "spec": {"replicas": 3, "list": [1, 2, 3], "half": 0.5}})
}

/// What an expression over `object` gives, as text.
fn run(source: &str) -> String {
    let mut env = Env { mutation: true, ..Env::default() };
    env.declare("object", Type::Dyn);
    let program = match Program::compile(&env, source) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let object = object();
    let scope = Scope::new(vec![("object", Value::json(&object))]);
    match scope.eval(&program.expr).0 {
        Ok(value) => value
            .to_json(&mut Work::default())
            .map(|j| j.to_string())
            .or_else(|_| show(&value).ok_or(()))
            .unwrap_or_else(|()| value.type_name().to_owned()),
        Err(error) => format!("error: {error}"),
    }
}

fn table(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        assert_eq!(&run(source), expected, "{source}");
    }
}

#[test]
fn operators_and_conversions() {
    table(&[
        ("1 + 2 * 3", "7"),
        ("7 / 2 + 7 % 2", "4"),
        ("1 / 0", "error: division by zero"),
        ("9223372036854775807 + 1", "error: integer overflow"),
        ("dyn(1) == 1.0 && dyn(1) == 1u && 1 < 1.5", "true"),
        ("dyn(1) < 1.5", "true"),
        ("'a' + 'b' == 'ab'", "true"),
        ("[1] + [2]", "[1,2]"),
        ("2 in [1, 2] && 'a' in {'a': 1}", "true"),
        ("object.spec.list[1]", "2"),
        ("object.spec.list[7]", "error: index out of bounds: 7"),
        ("object.spec.none", "error: no such key: none"),
        ("has(object.spec.none) || object.spec.half == 0.5", "true"),
        ("object.spec.none == 1 || true", "true"),
        ("true || object.spec.none == 1", "true"),
        ("false && object.spec.none == 1", "false"),
        ("object.spec.replicas > 2 ? 'many' : 'few'", "\"many\""),
        ("string(1.5) + string(1e21) + string(true)", "\"1.51e+21true\""),
        ("int('x')", "error: strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("int(2.9) + int('4')", "6"),
        ("size('äö') + size([1]) + 'x'.size()", "4"),
        ("type(1) == int && type('a') != int", "true"),
        ("duration('1h') > duration('59m')", "true"),
        ("timestamp('2024-02-29T12:00:00Z') + duration('24h')", "\"2024-03-01T12:00:00Z\""),
        ("timestamp('2024-02-29T12:00:00Z').getDayOfMonth()", "28"),
        ("timestamp('2024-01-01T00:30:00Z').getHours('-01:00')", "23"),
        ("{'a': 1, 'a': 2}", "error: duplicate map key"),
        ("b'abc' == bytes('abc')", "true"),
    ]);
}

#[test]
fn macros() {
    table(&[
        ("[1, 2, 3].all(x, x > 0)", "true"),
        ("[1, 2, 3].exists(x, x == 2)", "true"),
        ("[1, 2, 2].exists_one(x, x == 2)", "false"),
        ("[1, 2, 3].map(x, x * 2)", "[2,4,6]"),
        ("[1, 2, 3].map(x, x > 1, x * 2)", "[4,6]"),
        ("[1, 2, 3].filter(x, x != 2)", "[1,3]"),
        ("object.metadata.labels.all(k, k == 'a')", "true"),
        ("[1, 2].all(i, v, v == i + 1)", "true"),
        ("{'a': 1}.exists(k, v, k == 'a' && v == 1)", "true"),
        ("['x', 'y'].transformList(i, v, v + string(i))", "[\"x0\",\"y1\"]"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 2)", "{\"b\":4}"),
        ("['x', 'y'].transformMapEntry(i, v, {v: i})", "{\"x\":0,\"y\":1}"),
        ("['x', 'x'].transformMapEntry(i, v, {v: i})", "error: insert failed: key x already exists"),
        ("[1, 2].map(x, object.none)", "error: no such key: none"),
        ("[0, 1].exists(x, 1 / x == 1)", "true"),
        ("[1, 0].all(x, 1 / x == 2)", "false"),
    ]);
}

#[test]
fn optional_values() {
    table(&[
        ("object.?spec.?none.orValue(5)", "5"),
        ("object.?spec.?replicas.orValue(5)", "3"),
        ("object.spec.list[?9].hasValue()", "false"),
        ("optional.of(1).optMap(x, x + 1).value()", "2"),
        ("optional.none().orValue(3)", "3"),
        ("optional.ofNonZeroValue('').hasValue()", "false"),
        ("optional.none().value()", "error: optional.none() dereference"),
        ("optional.none().or(optional.of(1)).value()", "1"),
        ("[1, ?optional.none(), ?optional.of(2)]", "[1,2]"),
        ("{?'a': optional.none(), 'b': 1}", "{\"b\":1}"),
    ]);
}

#[test]
fn strings() {
    table(&[
        ("'hello'.charAt(4) + 'x'.charAt(1)", "\"o\""),
        ("'héllo'.indexOf('l')", "2"),
        ("'hello'.lastIndexOf('l')", "3"),
        ("'hello'.indexOf('l', 9)", "error: index out of range: 9"),
        ("'a,b,c'.split(',')", "[\"a\",\"b\",\"c\"]"),
        ("'a,b,c'.split(',', 2)", "[\"a\",\"b,c\"]"),
        ("'abc'.split('')", "[\"a\",\"b\",\"c\"]"),
        ("['a', 'b'].join('-')", "\"a-b\""),
        ("'Hi'.lowerAscii() + 'Hi'.upperAscii()", "\"hiHI\""),
        ("'  x '.trim()", "\"x\""),
        ("'aaa'.replace('a', 'b', 2)", "\"bba\""),
        ("'tacocat'.substring(4)", "\"cat\""),
        ("'tacocat'.substring(3, 2)", "error: invalid substring range. start: 3, end: 2"),
        ("'%s has %d of %.2f'.format([dyn('a'), 3, 1.5])", "\"a has 3 of 1.50\""),
        ("'%s'.format([[1, 2]])", "\"[1, 2]\""),
        ("strings.quote('a\"b')", "\"\\\"a\\\\\\\"b\\\"\""),
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'a1b2'.findAll('[0-9]', 1)", "[\"1\"]"),
        ("'abc'.matches('^a.c$')", "true"),
    ]);
}

#[test]
fn kubernetes_libraries() {
    table(&[
        ("[1, 2, 2].isSorted() && !['b', 'a'].isSorted()", "true"),
        ("[1, 2, 3].sum() + [3, 1].min() + [3, 1].max()", "10"),
        ("[1, 2, 1].indexOf(1) + [1, 2, 1].lastIndexOf(1)", "2"),
        ("[].min()", "error: min called on empty list"),
        ("url('https://a.b:80/p%20q?x=1&x=2').getHost()", "\"a.b:80\""),
        ("url('https://[::1]:80/').getHostname()", "\"::1\""),
        ("url('https://a.b/p?x=1&x=2').getQuery()", "{\"x\":[\"1\",\"2\"]}"),
        ("isURL('../relative') || isURL('https://a.b')", "true"),
        ("ip('10.0.0.1').family() + ip('::1').family()", "10"),
        ("isIP('1.2.3') || ip('127.0.0.1').isLoopback()", "true"),
        ("ip.isCanonical('2001:DB8::1')", "false"),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
            "true",
        ),
        ("string(cidr('10.1.2.3/8').masked())", "\"10.0.0.0/8\""),
        (
            "cidr('10.1.2.3/8').ip() == ip('10.1.2.3') && isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33')",
            "true",
        ),
        ("quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1500m').isInteger() == false", "true"),
        ("quantity('50k').asInteger() + quantity('1').compareTo(quantity('2'))", "49999"),
        ("quantity('1').add(2).sub(quantity('500m')) == quantity('2500m')", "true"),
        ("isQuantity('1x')", "false"),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2", "true"),
        ("semver('1.0.0-rc.1').compareTo(semver('1.0.0'))", "-1"),
        ("isSemver('1.2') || isSemver('01.2.3')", "false"),
        ("format.dns1123Label().validate('Bad').hasValue()", "true"),
        ("format.named('uuid').value().validate('x').value()", "[\"does not match the UUID format\"]"),
        ("!format.date().validate('2024-02-30').hasValue()", "false"),
        ("sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && !sets.intersects([1], [2])", "true"),
        ("jsonpatch.escapeKey('a/b~c')", "\"a~1b~0c\""),
        ("Object{spec: Object.spec{replicas: 1}}", "{\"spec\":{\"replicas\":1}}"),
        ("[JSONPatch{op: 'add', path: '/a', value: 1}]", "[{\"op\":\"add\",\"path\":\"/a\",\"value\":1}]"),
    ]);
}

#[test]
fn what_does_not_check_says_where() {
    let failed = |text: &str| format!("compilation failed: ERROR: <input>:{text}");
    for (source, expected) in [
        ("foo == 1", "1:1: undeclared reference to 'foo' (in container '')\n | foo == 1\n | ^"),
        (
            "1 + 'a'",
            "1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^",
        ),
        (
            "'a'.charAt('b')",
            "1:11: found no matching overload for 'charAt' applied to 'string.(string)'\n | 'a'.charAt('b')\n | ..........^",
        ),
        ("nope(1)", "1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^"),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        (
            "1.all(x, true)",
            "1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | 1.all(x, true)\n | ^",
        ),
        ("'a'.matches('(')", "1:13: invalid matches argument\n | 'a'.matches('(')\n | ............^"),
        ("duration('x')", "1:10: invalid duration argument\n | duration('x')\n | .........^"),
        ("Nope{}", "1:5: undeclared reference to 'Nope' (in container '')\n | Nope{}\n | ....^"),
    ] {
        assert_eq!(run(source), failed(expected), "{source}");
    }
}

#[test]
fn schemas_give_types() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer"}, "x-y": {"type": "string"}, "port": {"x-kubernetes-int-or-string": true},
        "at": {"type": "string", "format": "date-time"},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}}});
    let decl = decl::structural(&schema, decl::Level::Resource, "self").expect("a type");
    let mut env = Env::default();
    env.declare("self", decl.ty());
    let object = json!({"metadata": {"name": "a"}, "spec": {"n": 1, "x-y": "z", "port": "http", "set": ["a", "b"],
        "at": "2024-01-01T00:00:00Z"}});
    let check = |source: &str| -> Result<bool, String> {
        let program = Program::compile(&env, source)?;
        let scope = Scope::new(vec![("self", Value::part(&object, Some(&decl)))]);
        match scope.eval(&program.expr).0 {
            Ok(Value::Bool(b)) => Ok(b),
            other => Err(format!("{other:?}")),
        }
    };
    for source in [
        "self.spec.n == 1",
        "self.spec.x__dash__y == 'z'",
        "self.metadata.name == 'a'",
        "self.spec.port == 'http' || self.spec.port == 80",
        "self.spec.set == ['b', 'a']",
        "(self.spec.set + ['a', 'c']).size() == 3",
        "self.spec.at.getFullYear() == 2024",
        "!has(self.kind)",
    ] {
        assert_eq!(check(source), Ok(true), "{source}");
    }
    assert!(check("self.spec.nosuch == 1").is_err_and(|e| e.contains("undefined field 'nosuch'")));
    assert!(
        check("self.metadata.namespace == 'x'").is_err_and(|e| e.contains("undefined field 'namespace'"))
    );
    assert!(check("self.spec.n == 'a'").is_err());
}

#[test]
fn hostile_expressions_are_stopped() {
    for source in [
        // every one of these would take for ever, or all memory
        &format!("[{}].all(a, [{0}].all(b, [{0}].all(c, [{0}].all(d, true))))", "1,".repeat(200) + "1"),
        &format!("'{}'.replace('', '{}').size() > 0", "a".repeat(9000), "b".repeat(9000)),
        &format!("[{0}].map(x, [{0}].map(y, [{0}, x]))", "1,".repeat(300) + "1"),
        &format!("[{0}].map(x, [{0}].map(y, [{0}])) == []", "1,".repeat(300) + "1"),
        &format!("'{}'.matches('(((a*)*)*)*(((b*)*)*)*$')", "a".repeat(90_000)),
    ] {
        let started = std::time::Instant::now();
        let out = run(source);
        assert!(started.elapsed().as_secs() < 20, "{out}");
        assert!(out.contains("cost limit") || out == "true" || out == "false", "{out:.200}");
    }
    // the deepest that is read must not run out of a thread's stack
    let deep = |open: &str, inner: &str, close: &str, n: usize| {
        run(&format!("{}{inner}{}", open.repeat(n), close.repeat(n)))
    };
    for out in [
        deep("object.spec.list.exists(x, ", "x > 5", ")", 120),
        deep("[object, ", "1", "]", 240),
        deep("object.spec.replicas > 5 ? 1 : ", "2", "", 240),
        deep("{'a': ", "object", "}", 240),
        deep("size([", "object", "])", 120),
    ] {
        assert!(!out.contains("compilation failed"), "{out:.300}");
    }
    let doubled = (0..40).fold("[1]".to_owned(), |inner, _| format!("[{inner}].map(x, [x, x])[0]"));
    assert!(run(&format!("{doubled} == {doubled}")).contains("limit"));
}

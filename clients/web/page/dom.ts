/** Small helpers over the DOM; every id is in index.html. */

export function byId<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no element #${id}`);
  return element as Kind;
}

export function make<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  text = "",
  variables: Record<string, number> = {},
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  for (const [key, value] of Object.entries(variables)) element.style.setProperty(`--${key}`, String(value));
  return element;
}

export function option(value: string, text: string): HTMLOptionElement {
  const element = make("option", text);
  element.value = value;
  return element;
}

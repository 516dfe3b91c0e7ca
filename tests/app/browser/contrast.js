// Texts of a page whose contrast is below 4.5 : 1 (WCAG 2.1, 1.4.3), with their contrast; what is disabled is exempt.
() => {
  const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return c.startsWith('color(srgb') ? [m[0]*255,m[1]*255,m[2]*255,m[3]??1] : [m[0],m[1],m[2],m[3]??1]; };
  const over = (a,b) => [0,1,2].map(i => a[i]*a[3]+b[i]*(1-a[3])).concat(1);
  const lum = c => { const [r,g,b] = c.slice(0,3).map(v => { v/=255; return v<=0.03928? v/12.92 : ((v+0.055)/1.055)**2.4; }); return 0.2126*r+0.7152*g+0.0722*b; };
  const back = el => { const layers=[]; for (let e=el;e;e=e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor)); let c = parse(getComputedStyle(document.documentElement).colorScheme.includes('dark')?'rgb(0,0,0)':'rgb(255,255,255)'); for (const l of layers.reverse()) c = over(l,c); return c; };
  const ratio = (fg,bg) => { const a=lum(over(fg,bg)), b=lum(bg); return (Math.max(a,b)+0.05)/(Math.min(a,b)+0.05); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), el = walk.currentNode.parentElement;
    if (!text || !el || ['SCRIPT','STYLE','NOSCRIPT'].includes(el.tagName)) continue;
    const box = el.getBoundingClientRect(), style = getComputedStyle(el);
    if (!box.width || !box.height || style.visibility !== 'visible' || el.closest(':disabled,[aria-hidden=true]')) continue;
    let op = 1; for (let e=el;e;e=e.parentElement) op *= Number(getComputedStyle(e).opacity);
    if (op === 0) continue;
    const fg = parse(style.color); fg[3] *= op;
    found.push([Math.round(100*ratio(fg, back(el)))/100, text.slice(0,40), el.className.toString().slice(0,40)]);
  }
  for (const el of document.querySelectorAll('textarea,input[type=text]')) {
    if (!el.placeholder || !el.getBoundingClientRect().width) continue;
    const s = getComputedStyle(el,'::placeholder'); const fg = parse(s.color); fg[3] *= Number(s.opacity);
    found.push([Math.round(100*ratio(fg, back(el)))/100, 'placeholder: '+el.placeholder.slice(0,30), el.className]);
  }
  found.sort((a,b)=>a[0]-b[0]);
  return found.filter(f => f[0] < 4.5).slice(0,25);
}
